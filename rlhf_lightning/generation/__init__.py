"""Generate responses: one engine per file; `base` is the contract."""
