"""Generate responses with the policy: one engine per file, and `base` is the contract.

A new engine is one file here with a dataclass that derives from `Generator` and implements `generate`. Its fields are the
options under `generation:` in YAML. `sampling.py` chooses a token from logits; change top-p or top-k there.
`continuous.py` and `static.py` hold the two decoding loops of `Sampler`, which `local.py` chooses between.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):  # a new file is an engine: nothing else has to import it
    importlib.import_module(f"{__name__}.{_module.name}")
