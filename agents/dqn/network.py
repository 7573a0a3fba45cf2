"""The query network pi of the paper's figure B.1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from al_seg_env.storage.validation import check, check_int, check_number

NORM_EPS = 1e-3
"""Added to the variances of batch normalisation. Many inputs hardly vary at first (a class that is never predicted, a
region of D_S that does not change). With torch's default of 1e-5, the first change of such an input is magnified by up
to 300, and Q explodes, because targets are computed with these running statistics."""


class RepeatedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation in which a row may stand for several equal ones, as if it had been given that often."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """Normalise x (M, F); ``counts`` (M,) tells how often each row occurs, once by default."""
        if counts is None or not self.training:
            return super().forward(x)
        total = counts.sum()
        mean = counts @ x / total  # (F,)
        centred = x - mean
        variance = counts @ centred.square() / total  # (F,)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (total / (total - 1)), self.momentum)
        return torch.addcmul(self.bias, centred, self.weight * (variance + self.eps).rsqrt())


class QueryLayer(nn.Sequential):
    """One layer of the query network: batch normalisation, ReLU, linear (paper, appendix B)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(RepeatedBatchNorm(n_in, eps=NORM_EPS), nn.ReLU(), nn.Linear(n_in, n_out))

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """(M, n_in) -> (M, n_out); for ``counts``, see :class:`RepeatedBatchNorm`."""
        norm, relu, linear = self
        y: Tensor = linear(relu(norm(x, counts)))
        return y


class QueryNetwork(nn.Module):
    """Q(s_t, a_t^{k,n}) of any number of candidate regions (paper, figure B.1).

    Four layers encode the state and three encode the candidate; a last layer maps both to a score. A gate scales this
    score: Q = score * sigmoid(gate). Its only input is the similarity of the candidate to the labelled and the
    unlabelled set. The network depends on S, F and D, but not on the number of pools or candidates.

    Args:
        n_regions: S, the regions of the state.
        n_features: F, the features of a region.
        n_similarity: D, the similarity features of a candidate. With 0 there is no gate, and Q is the score.
    """

    def __init__(self, n_regions: int, n_features: int, n_similarity: int = 0) -> None:
        super().__init__()
        for name, value, least in (
            ("n_regions", n_regions, 1),
            ("n_features", n_features, 1),
            ("n_similarity", n_similarity, 0),
        ):
            check_int(name, value, least)
        self.n_similarity = n_similarity
        self.region_path = nn.Sequential(QueryLayer(n_features, 256), QueryLayer(256, 128), QueryLayer(128, 1))
        self.state_layer = QueryLayer(n_regions, 128)
        self.action_path = nn.Sequential(QueryLayer(n_features, 512), QueryLayer(512, 256), QueryLayer(256, 128))
        self.score_layer = QueryLayer(256, 1)
        self.gate_layer = QueryLayer(n_similarity, 1) if n_similarity > 0 else None

    def describe_state(self, state: Tensor, counts: Tensor | None = None) -> Tensor:
        """Encode states: (U, S, F) -> (U, 128); ``counts`` (U,) tells how often each occurs in the batch."""
        n_states, n_regions, n_features = state.shape
        per_region = state.reshape(-1, n_features)  # (U * S, F)
        of_regions = None if counts is None else counts.repeat_interleave(n_regions)  # (U * S,)
        for layer in self.region_path:
            per_region = layer(per_region, of_regions)  # at last (U * S, 1)
        described: Tensor = self.state_layer(per_region.view(n_states, n_regions), counts)  # (U, 128)
        return described

    def q_values(
        self, state: Tensor, candidates: Tensor, similarity: Tensor | None = None, state_of: Tensor | None = None
    ) -> Tensor:
        """Value of every candidate. The state path runs once for each state, however many candidates it has.

        Args:
            state: (B, S, F), float32; (U, S, F) with ``state_of``.
            candidates: (B, ..., F), float32.
            similarity: (B, ..., D), float32; ``None`` if D is 0.
            state_of: (B,), int64: which of the U states each row belongs to, where rows share states. Values and batch
                statistics are those of a batch in which each row has a copy of its state.

        Returns:
            (B, ...), float32.

        Raises:
            ValueError: If ``similarity`` is missing although D is not 0, or given although D is 0.
        """
        if (similarity is None) != (self.gate_layer is None):
            raise ValueError(
                f"This network was built for D = {self.n_similarity} similarity features, but similarity is "
                f"{'missing' if similarity is None else f'given, with shape {tuple(similarity.shape)}'}."
            )
        shape = candidates.shape[:-1]  # (B, ...)
        described = self.action_path(candidates.reshape(-1, candidates.shape[-1]))  # (M, 128), M = all candidates
        if state_of is None:
            states = self.describe_state(state)  # (B, 128)
        else:
            counts = torch.bincount(state_of, minlength=len(state)).to(state.dtype)  # (U,)
            states = self.describe_state(state, counts)[state_of]  # (B, 128)
        states = states.unsqueeze(1).expand(-1, shape[1:].numel(), -1).reshape(-1, states.shape[-1])  # (M, 128)
        q: Tensor = self.score_layer(torch.cat([states, described], dim=1))  # (M, 1)
        if self.gate_layer is not None and similarity is not None:
            q = q * torch.sigmoid(self.gate_layer(similarity.reshape(-1, similarity.shape[-1])))  # (M, 1)
        return q.view(shape)

    forward = q_values


class CandidateNetwork(nn.Module):
    """Q of a candidate from its own features: the mean of an ensemble, small enough for a few thousand transitions.

    With ``labelled``, the network predicts for each class how many labels a region would add, in shares of a region. Q
    is the increase of the classes' logarithmic label levels that follows from these shares, each class weighted by its
    ``worth``. This makes the shares successor features (Barreto et al., NeurIPS 2017). They don't depend on how much is
    labelled elsewhere, so the features ``labelled`` are not an input of the network.

    With ``forecast``, the shares are what a forecast of the region holds beyond the present prediction, plus a
    correction that the members learn and that is zero at first. Without any transition, the network already chooses by
    the forecast (residual learning).

    The state is not an input, either: whatever matters for a choice between candidates, such as which classes are still
    rare, must be among the candidates' features. Inputs are normalised by running statistics, as in
    :class:`QueryNetwork`. Dropout and the ensemble reduce overfitting to single transitions.

    Args:
        n_features: F, the features of a region.
        hidden: Units of each member's hidden layer.
        members: Number of members of the ensemble.
        dropout: Probability with which inputs and hidden units are dropped in training.
        labelled: First and last column (exclusive) of the features that give the labels of each class so far,
            ``log(1 + n)`` for labels worth n regions.
        predicted: First and last column (exclusive) of the classes' mean probabilities, for ``forecast``.
        forecast: First and last column (exclusive) of the classes' mean probabilities in the forecast.
    """

    def __init__(
        self,
        n_features: int,
        hidden: int = 128,
        members: int = 3,
        dropout: float = 0.2,
        labelled: tuple[int, int] | None = None,
        predicted: tuple[int, int] | None = None,
        forecast: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_int("n_features", n_features, 1)
        check_int("hidden", hidden, 1)
        check_number("dropout", dropout, least=0, most=1)
        for name, columns in (("labelled", labelled), ("predicted", predicted), ("forecast", forecast)):
            good = columns is None or (len(columns) == 2 and 0 <= columns[0] < columns[1] <= n_features)
            check(name, columns, good, f"None, or first and last column (exclusive) of {n_features} features")
        first, last = labelled or (n_features, n_features)
        self.labelled = slice(first, last) if labelled else None
        self.expected: tuple[slice, slice] | None = None
        if forecast is not None:
            widths = {columns[1] - columns[0] for columns in (labelled, predicted, forecast) if columns is not None}
            good = labelled is not None and predicted is not None and len(widths) == 1
            check("forecast", forecast, good, "columns of as many classes as labelled and predicted, or None")
            assert predicted is not None
            self.expected = slice(*predicted), slice(*forecast)
        n_values = last - first if labelled else 1
        self.read = [column for column in range(n_features) if not first <= column < last]
        self.norm = nn.BatchNorm1d(len(self.read), eps=NORM_EPS, momentum=0.01, affine=False)
        # Shares of rare classes are small, so members predict standardised shares.
        self.value_norm = nn.BatchNorm1d(n_values, eps=1e-8, momentum=None, affine=False) if labelled else None
        self.worth: Tensor
        self.register_buffer("worth", torch.ones(n_values))
        self.members = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(dropout),
                nn.Linear(len(self.read), hidden),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, n_values),
            )
            for _ in range(check_int("members", members, 1))
        )
        if self.expected is not None:  # no correction before anything is learnt
            for member in self.members:
                for parameter in member[-1].parameters():  # type: ignore[index]
                    nn.init.zeros_(parameter)

    def q_values(
        self, state: Tensor, candidates: Tensor, similarity: Tensor | None = None, state_of: Tensor | None = None
    ) -> Tensor:
        """Value of every candidate; in training mode, a random member values each candidate.

        Args:
            state: Not used.
            candidates: (B, ..., F), float32.
            similarity, state_of: Not used.

        Returns:
            (B, ...), float32.
        """
        values = self.values(candidates)  # (B, ..., V)
        return values.squeeze(-1) if self.labelled is None else self.weighted(values, candidates)

    def values(self, candidates: Tensor) -> Tensor:
        """Predicted values: (B, ..., F) -> (B, ..., V). With ``labelled``, shares of V = C classes; else Q (V = 1)."""
        read = candidates.reshape(-1, candidates.shape[-1])  # (M, F), M = all candidates
        x = self.norm(read if self.labelled is None else read[:, self.read])
        values = torch.stack([member(x) for member in self.members])  # (members, M, V)
        if self.training:  # each member learns from a share of the transitions
            chosen = torch.randint(len(values), (values.shape[1],), device=values.device)
            values = values[chosen, torch.arange(values.shape[1], device=values.device)]
        else:
            values = values.mean(dim=0)
        if self.value_norm is not None:
            assert self.value_norm.running_mean is not None
            values = values * self._value_deviation()
            if self.expected is None:
                values = values + self.value_norm.running_mean
            else:
                predicted, forecast = self.expected
                values = values + (read[:, forecast] - read[:, predicted]).clamp(min=0)
        return values.view(*candidates.shape[:-1], -1)

    def normalized_errors(self, values: Tensor, targets: Tensor) -> Tensor:
        """Errors (B, C) divided by the running standard deviation of targets (B, C), which training mode updates."""
        assert self.value_norm is not None
        self.value_norm(targets)
        return (values - targets) / self._value_deviation()

    def _value_deviation(self) -> Tensor:
        assert self.value_norm is not None
        assert self.value_norm.running_var is not None
        return (self.value_norm.running_var + self.value_norm.eps).sqrt()  # (C,)

    def weighted(self, values: Tensor, candidates: Tensor) -> Tensor:
        """Q of candidates (B, ..., F) with the given shares (B, ..., C): (B, ...)."""
        return self.raised(values, candidates[..., self.labelled].exp()) @ self.worth

    @staticmethod
    def raised(values: Tensor, amounts: Tensor) -> Tensor:
        """Increase of the label levels ``log(amounts)`` if shares are added to the amounts; all (..., C)."""
        return torch.log1p(values.clamp(min=0) / amounts)

    forward = q_values
