"""The shared core: Gaussian paths, predictors, guidance, samplers and weights, for filters, smoothers and images."""
