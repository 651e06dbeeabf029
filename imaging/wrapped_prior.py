"""What priors that use another prior on parts of an image have in common: its numbers."""

from __future__ import annotations

from assimilate.posterior.denoisers import Prior


class WrappedPrior:
    """A prior with the spread, noise levels and bounds of the one that it uses.

    Attributes:
        prior: the prior of a part.
    """

    prior: Prior

    @property
    def spread(self) -> float:
        """See `Prior`."""
        return self.prior.spread

    @property
    def smallest(self) -> float:
        """See `Prior`."""
        return self.prior.smallest

    @property
    def largest(self) -> float:
        """See `Prior`."""
        return self.prior.largest

    @property
    def bounds(self) -> tuple[float, float] | None:
        """See `Prior`."""
        return self.prior.bounds

    @property
    def gives(self) -> str:
        """What one call gives, a "mean" or a "draw"."""
        return getattr(self.prior, "gives", "mean")
