"""TensorRT 10, TensorRT 11 and TensorRT-RTX as their listings in data/tensorrt_api have them, and no more.

A name that is not listed raises AttributeError, a call with more or fewer arguments than its signature TypeError. What
is read, called and set is recorded. Nothing is built: the engine is the bytes `PLAN`.
"""

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LISTINGS = Path(__file__).parent / "data" / "tensorrt_api"
VERSIONS = {path.stem: path for path in sorted(LISTINGS.glob("tensorrt*.txt"))}
PLAN = b"an engine"
INFORMATION = {
    "Layers": [
        {
            "Name": "conv",
            "Outputs": [{"Name": "a", "Format/Datatype": "Channel major FP16 format"}],
        },
        {"Name": "cast", "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP32"}]},
    ]
}


def listing(version: str) -> dict[str, dict[str, str]]:
    """Signature, or nothing, by member by class."""
    found: dict[str, dict[str, str]] = {}
    for line in VERSIONS[version].read_text().splitlines():
        name, _, signature = line.partition("  ")
        if name.startswith("#"):
            continue
        owner, dot, member = name.rpartition(".")
        if dot and owner in found:
            found[owner][member] = signature
        found.setdefault(name, {})
    return {name: members for name, members in found.items() if members}


class StandIn:
    """One version's module; `used` holds every class and member that was touched."""

    def __init__(self, version: str, **scenario: Any) -> None:
        self.scenario = {
            "parsed": True,
            "plan": PLAN,
            "log": (),
            "unsupported": (),
            "errors": (),
            "cache_fits": True,
            "attention": True,
            "inputs": (("x", (-1, 4, 64, 64)), ("prompt", (1, 77, 1024))),
        } | scenario
        self.__version__ = version.rpartition("-")[2]
        self.used: set[tuple[str, str]] = set()
        self.api = listing(version)
        self.objects: list[Any] = []
        nested = {name for name in self.api if "." in name}
        self._classes = {name: self._class(name) for name in self.api}
        for name in nested:
            owner, member = name.split(".")
            setattr(self._classes[owner], member, self._classes[name])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._classes:
            raise AttributeError(f"TensorRT {self.__version__} has no {name}")
        self.used.add((name, ""))
        return self._classes[name]

    def _class(self, name: str) -> type:
        members = self.api[name]
        if {"name", "value"} <= members.keys():
            return _enumeration(self, name, members)
        return type(name, (_Listed,), {"stand_in": self, "listed": name, "members": members})

    def made(self, name: str) -> Any:
        """The one object of a class that was made."""
        (thing,) = (thing for thing in self.objects if type(thing).__name__ == name)
        return thing


class _Values(type):
    def __getattr__(cls, name: str) -> Any:
        if name not in cls.members or name in ("name", "value"):
            raise AttributeError(f"TensorRT {cls.stand_in.__version__} has no {cls.listed}.{name}")
        cls.stand_in.used.add((cls.listed, name))
        return cls(name)


def _enumeration(stand_in: StandIn, listed: str, members: dict[str, str]) -> type:
    values = [member for member in members if member not in ("name", "value")]
    spaces = {"stand_in": stand_in, "listed": listed, "members": members}
    plain = {
        "__init__": lambda self, name: setattr(self, "name", name),
        "__int__": lambda self: values.index(self.name),
        "__eq__": lambda self, other: type(self) is type(other) and self.name == other.name,
        "__hash__": lambda self: hash(self.name),
    }
    return _Values(listed.rpartition(".")[2], (), spaces | plain)


class _Listed:
    """An object of a listed class. Subclasses written by the builder may override what is listed."""

    stand_in: StandIn
    listed: str
    members: dict[str, str]

    def __init__(self, *given: Any) -> None:
        values = {"given": given, "calls": [], "values": {}}
        self.__dict__.update(values)
        self.stand_in.objects.append(self)

    def __getattr__(self, name: str) -> Any:
        cls = type(self)
        if name.startswith("_") or name not in cls.members:
            raise AttributeError(f"TensorRT {self.stand_in.__version__} has no {cls.listed}.{name}")
        self.stand_in.used.add((cls.listed, name))
        if name in self.values:
            return self.values[name]
        answer = _ANSWERS.get((cls.listed, name))
        if isinstance(answer, property):
            return answer.fget(self)
        return partial(self._call, name, answer)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":
            return object.__setattr__(self, name, value)
        if name not in type(self).members:
            raise AttributeError(
                f"TensorRT {self.stand_in.__version__} has no {self.listed}.{name}"
            )
        self.stand_in.used.add((self.listed, name))
        self.values[name] = value
        return None

    def _call(self, name: str, answer: Any, *given: Any) -> Any:
        signature = type(self).members[name]
        wanted = re.findall(r"(\w+): [^,()=]+( = [^,)]+)?", signature.split(" -> ")[0])[1:]
        least = sum(not default for _, default in wanted)
        if signature and not least <= len(given) <= len(wanted):
            raise TypeError(f"{signature}: {len(given)} arguments")
        self.calls.append((name, given))
        if answer is not None:
            return answer(self, *given)
        kind = signature.rpartition(" -> ")[2]
        assert kind, f"{self.listed}.{name} has no signature: say in _ANSWERS what it returns"
        plain = {"bool": True, "int": 0, "None": None}
        return plain[kind] if kind in plain else self.stand_in._classes[kind]()


def _built(builder: Any, network: Any, config: Any) -> bytes | None:
    monitor, logger = config.values["progress_monitor"], builder.given[0]
    monitor.phase_start("Building engine", None, 2)
    for severity, text in builder.stand_in.scenario["log"]:
        logger.log(SimpleNamespace(name=severity), text)
    monitor.step_complete("Building engine", 0)
    monitor.phase_finish("Building engine")
    return builder.stand_in.scenario["plan"]


def _layer(network: Any, index: int) -> Any:
    kind = ("CONVOLUTION", "ATTENTION_INPUT")[index]
    layer = network.stand_in._classes["ILayer"]()
    layer.values["type"] = getattr(network.stand_in._classes["LayerType"], kind)
    return layer


def _input(network: Any, index: int) -> Any:
    tensor = network.stand_in._classes["ITensor"]()
    name, shape = network.stand_in.scenario["inputs"][index]
    tensor.values.update(name=name, shape=shape)
    return tensor


def _error(parser: Any, index: int) -> Any:
    error = parser.stand_in._classes["ParserError"]()
    for name, value in parser.stand_in.scenario["errors"][index].items():
        error.values[name] = lambda value=value: value
    return error


def _scenario(name: str) -> Any:
    return property(lambda self: self.stand_in.scenario[name])


def _count(name: str) -> Any:
    return property(lambda self: len(self.stand_in.scenario[name]))


_ANSWERS: dict[tuple[str, str], Any] = {
    ("Builder", "build_serialized_network"): _built,
    ("OnnxParser", "parse_from_file"): lambda self, path: self.stand_in.scenario["parsed"],
    ("OnnxParser", "num_errors"): _count("errors"),
    ("OnnxParser", "get_error"): _error,
    ("OnnxParser", "supports_operator"): lambda self, op: (
        op not in self.stand_in.scenario["unsupported"]
    ),
    ("INetworkDefinition", "num_layers"): property(lambda self: 2),
    ("INetworkDefinition", "get_layer"): _layer,
    ("INetworkDefinition", "num_inputs"): _count("inputs"),
    ("INetworkDefinition", "get_input"): _input,
    ("IAttentionInputLayer", "attention"): property(
        lambda self: self.stand_in._classes["IAttention"]()
    ),
    ("IBuilderConfig", "set_timing_cache"): lambda self, cache, ignore: (
        self.stand_in.scenario["cache_fits"] or cache.stand_in.scenario.update(cache_fits=True)
    ),
    ("ITimingCache", "serialize"): lambda self: b"times",
    ("Runtime", "deserialize_cuda_engine"): lambda self, plan: self.stand_in._classes[
        "ICudaEngine"
    ](),
    ("EngineInspector", "get_engine_information"): lambda self, form: json.dumps(INFORMATION),
}
