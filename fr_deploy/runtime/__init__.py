"""Where and how a restoration graph runs: devices, backends, batches."""
