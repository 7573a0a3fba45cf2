"""The query network pi of the paper's figure B.1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from al_seg_env.storage.validation import check, check_int, check_number

NORM_EPS = 1e-3
"""Added to the variances of batch normalisation. Many inputs hardly vary at first (a class that is never predicted, a
region of D_S that does not change), and torch's 1e-5 magnifies the first change of such an input by up to 300: Q then
explodes, since the target is computed with these running statistics."""


def query_layer(n_in: int, n_out: int) -> nn.Sequential:
    """One layer of the query network: batch normalisation, ReLU, linear (paper, appendix B)."""
    return nn.Sequential(nn.BatchNorm1d(n_in, eps=NORM_EPS), nn.ReLU(), nn.Linear(n_in, n_out))


class QueryNetwork(nn.Module):
    """Q(s_t, a_t^{k,n}) of any number of candidate regions (paper, figure B.1).

    Four layers describe the state, three the candidate, one last layer makes a score of both, and a gate that
    sees only the candidate's similarity to the labelled and the unlabelled set scales it: Q = score *
    sigmoid(gate). The network depends on S, F and D, not on the number of pools or candidates.

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
        self.region_path = nn.Sequential(query_layer(n_features, 256), query_layer(256, 128), query_layer(128, 1))
        self.state_layer = query_layer(n_regions, 128)
        self.action_path = nn.Sequential(query_layer(n_features, 512), query_layer(512, 256), query_layer(256, 128))
        self.score_layer = query_layer(256, 1)
        self.gate_layer = query_layer(n_similarity, 1) if n_similarity > 0 else None

    def describe_state(self, state: Tensor) -> Tensor:
        """The state path: (B, S, F) -> (B, 128)."""
        n_states, n_regions, n_features = state.shape
        per_region = self.region_path(state.reshape(-1, n_features))  # (B * S, 1)
        described: Tensor = self.state_layer(per_region.view(n_states, n_regions))  # (B, 128)
        return described

    def q_values(self, state: Tensor, candidates: Tensor, similarity: Tensor | None = None) -> Tensor:
        """Value of every candidate; the state path runs once for each state, however many candidates it has.

        Args:
            state: (B, S, F).
            candidates: (B, ..., F).
            similarity: (B, ..., D), ``None`` if D is 0.

        Returns:
            (B, ...).
        """
        if (similarity is None) != (self.gate_layer is None):
            raise ValueError(
                f"This network was built for D = {self.n_similarity} similarity features, and similarity is "
                f"{'missing' if similarity is None else f'given, with shape {tuple(similarity.shape)}'}."
            )
        shape = candidates.shape[:-1]  # (B, ...)
        described = self.action_path(candidates.reshape(-1, candidates.shape[-1]))  # (M, 128), M candidates in all
        states = self.describe_state(state)  # (B, 128)
        states = states.unsqueeze(1).expand(-1, shape[1:].numel(), -1).reshape(-1, states.shape[-1])  # (M, 128)
        q: Tensor = self.score_layer(torch.cat([states, described], dim=1))  # (M, 1)
        if self.gate_layer is not None and similarity is not None:
            q = q * torch.sigmoid(self.gate_layer(similarity.reshape(-1, similarity.shape[-1])))  # (M, 1)
        return q.view(shape)

    forward = q_values


class CandidateNetwork(nn.Module):
    """Q of a candidate by its own features, small enough for a few thousand transitions: the mean of an ensemble.

    With ``labelled``, it predicts what a region's labels would add of each class apart, in shares of a region, and Q is
    by how much that raises the logarithmic label levels of the classes, each weighted by its ``worth``: successor
    features (Barreto et al., NeurIPS 2017). What labels add does not depend on how much is labelled elsewhere, and the
    network does not look at that.

    It does not look at the state of the network. What of it matters for a choice between candidates (such as which
    classes are still rare) must be among their features. Inputs are normalised by running statistics, as in
    :class:`QueryNetwork`; dropout and the ensemble hold it back from learning single transitions by heart.

    Args:
        n_features: F, the features of a region.
        hidden: Units of each member's hidden layer.
        members: Members of the ensemble.
        dropout: Probability with which inputs and hidden units are dropped in training.
        labelled: First and last column (exclusive) of the features that say how much of each class is labelled,
            ``log(1 + n)`` for labels of n regions.
    """

    def __init__(
        self,
        n_features: int,
        hidden: int = 128,
        members: int = 3,
        dropout: float = 0.2,
        labelled: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_int("n_features", n_features, 1)
        check_int("hidden", hidden, 1)
        check_number("dropout", dropout, least=0, most=1)
        good = labelled is None or (len(labelled) == 2 and 0 <= labelled[0] < labelled[1] <= n_features)
        check("labelled", labelled, good, f"None, or first and last column (exclusive) of {n_features} features")
        first, last = labelled or (n_features, n_features)
        self.labelled = slice(first, last) if labelled else None
        n_values = last - first if labelled else 1
        self.read = [column for column in range(n_features) if not first <= column < last]
        self.norm = nn.BatchNorm1d(len(self.read), eps=NORM_EPS, momentum=0.01, affine=False)
        # Shares of rare classes are small: members predict them in deviations from their means.
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

    def q_values(self, state: Tensor, candidates: Tensor, similarity: Tensor | None = None) -> Tensor:
        """Value of every candidate; in training mode, of a random member for each.

        Args:
            state: Not used.
            candidates: (B, ..., F).
            similarity: Not used.

        Returns:
            (B, ...).
        """
        values = self.values(candidates)  # (B, ..., V)
        return values.squeeze(-1) if self.labelled is None else self.weighted(values, candidates)

    def values(self, candidates: Tensor) -> Tensor:
        """What Q is made of: the shares of C classes, with ``labelled``, or Q itself: (B, ..., F) -> (B, ..., V)."""
        read = candidates.reshape(-1, candidates.shape[-1])  # (M, F), M candidates in all
        x = self.norm(read if self.labelled is None else read[:, self.read])
        values = torch.stack([member(x) for member in self.members])  # (members, M, V)
        if self.training:  # each member has a share of the transitions
            chosen = torch.randint(len(values), (values.shape[1],), device=values.device)
            values = values[chosen, torch.arange(values.shape[1], device=values.device)]
        else:
            values = values.mean(dim=0)
        if self.value_norm is not None:
            assert self.value_norm.running_mean is not None
            values = values * self._value_deviation() + self.value_norm.running_mean
        return values.view(*candidates.shape[:-1], -1)

    def normalized_errors(self, values: Tensor, targets: Tensor) -> Tensor:
        """Errors (B, C) in standard deviations of all targets (B, C) so far, in training mode of these ones, too."""
        assert self.value_norm is not None
        self.value_norm(targets)
        return (values - targets) / self._value_deviation()

    def _value_deviation(self) -> Tensor:
        assert self.value_norm is not None
        assert self.value_norm.running_var is not None
        return (self.value_norm.running_var + self.value_norm.eps).sqrt()  # (C,)

    def weighted(self, values: Tensor, candidates: Tensor) -> Tensor:
        """Q of candidates (B, ..., F) that hold these shares (B, ..., C): (B, ...)."""
        return self.raised(values, candidates[..., self.labelled].exp()) @ self.worth

    @staticmethod
    def raised(values: Tensor, amounts: Tensor) -> Tensor:
        """By how much shares raise the label levels ``log(amounts)``; all (..., C)."""
        return torch.log1p(values.clamp(min=0) / amounts)

    forward = q_values
