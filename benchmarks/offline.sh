#!/bin/bash
# Run a command of this checkout on a machine that reaches no package registry, such as a lent GPU:
#
#   benchmarks/offline.sh PACK python -m fr_bench.gpu_suite kernels -o OUT
#   benchmarks/offline.sh PACK python -m fr_training.on_gpu -o OUT --minutes 7
#
# PACK is what `python -m fr_training.pack` wrote; a part of it will do, each command needs what it needs. Its wheels, its
# cache and this checkout are installed into $OFFLINE (.offline), again only when one of them has changed; besides, build/
# and *.egg-info are written, as by any build. The machine's own Python, $PYTHON or python3, must bring torch, Triton and
# setuptools.
set -euo pipefail
pack=$(realpath "$1")
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=${OFFLINE:-$PWD/.offline}
rooms=(pyproject.toml csrc kernels fr_deploy export training benchmarks)
ours=$(find "${rooms[@]}" -type f -not -path '*/__pycache__/*' -not -path '*/results/*' -exec cksum {} +)
key=$({ ls -l "$pack" "$pack"/wheels 2>/dev/null || true; echo "$ours"; "$python" -V; } | cksum)
if [ "$(cat "$site/installed" 2>/dev/null)" != "$key" ]; then
  rm -rf "$site" build
  shopt -s nullglob
  "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation --no-compile --target "$site" \
    "$pack"/wheels/*.whl .
  if [ -e "$pack/cache.tar.xz" ]; then "$python" -m tarfile --extract "$pack/cache.tar.xz" "$site"; fi
  echo "$key" >"$site/installed"
fi
mkdir -p "$site/bin"
rm -f "$site/bin/python"
printf '#!/bin/sh\nexec "%s" "$@"\n' "$(command -v "$python")" >"$site/bin/python"
chmod +x "$site/bin/python"
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} FR_DEPLOY_CACHE=$site/cache PATH=$site/bin:$PATH PYTHONUNBUFFERED=1
exec "$@"
