# A list of pins with hashes, made fit for torch from PyTorch's own index (TORCH_BACKEND=cpu): without the packages that PyPI's torch is made of,
# and without the hashes of torch and its kin, whose builds on that index are others. All other hashes stay.
/^[A-Za-z0-9]/ { cuda = /^(nvidia-|cuda-|triton==)/; torch = /^torch/ }
cuda { next }
torch && /--hash=/ { next }
torch { sub(/ \\$/, "") }
{ print }
