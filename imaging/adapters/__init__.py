"""Networks and instruments of other libraries as priors and operators; each is imported only if it is used.

    diffusers.py   a `diffusers` UNet and its scheduler as a prior
    deepinv.py     a `deepinv` denoiser as a prior, a `deepinv` physics as an operator

The adapters go by the way that those objects are called, not by their classes: an object of your own that is called in
the same way will do.
"""
