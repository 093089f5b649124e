"""Services as an attacker meets them: images in, answers out, and every question counted."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from saat_jax import options
from saat_jax.retrieval.indexes import Index
from saat_jax.retrieval.points import OperatingPoint

# What a service tells of an image: the nearest rows with their distances, the rows alone, or only
# whether it matches what it is held against.
ANSWERS = ("distances", "ranks", "match")


class Answer(NamedTuple):
    """What a service tells of some images.

    Attributes:
        match: `[num]` whether each matches what its account holds it against.
        rows: `[num, k]` of what is listed, nearest first, -1 where there is none; None if untold.
        apart: `[num, k]` distances; None if untold.
    """

    match: np.ndarray
    rows: np.ndarray | None
    apart: np.ndarray | None


class Oracle:
    """Answers about images and counts; refuses what is beyond the budget of an account.

    Args:
        run: maps images to `[num, num_bits]` outputs, as `Encoder.run`.
        index: what is searched.
        point: what counts as a match.
        about: `[num_accounts, num_wanted]` rows of what is listed: what each account asks about.
        kind: one of `ANSWERS`.
        k: length of the list that the service returns.
        budget: so many images an account may ask about.

    Attributes:
        asked: `[num_accounts]` how many images each has asked about.
        budget, k: as given; a list of a fixed length is never shorter than that.

    Raises:
        ValueError: if there is no such kind of answer, or a number is none.
    """

    def __init__(
        self,
        run: Callable[[Sequence[np.ndarray]], np.ndarray],
        index: Index,
        point: OperatingPoint,
        about: np.ndarray,
        *,
        kind: str,
        k: int,
        budget: int,
    ):
        options.check_word("answer", kind, ANSWERS)
        options.check_numbers(budget=budget, k=k)
        self._run, self._index, self._point, self._about = run, index, point, np.asarray(about)
        self._kind, self.k, self.budget = kind, k, budget
        if point.kind == "top_k":
            self.k = max(k, int(point.value))
        self.asked = np.zeros(len(self._about), int)

    def left(self) -> np.ndarray:
        """How many images each account may still ask about. `[num_accounts]`"""
        return self.budget - self.asked

    def ask(self, accounts: np.ndarray, images: Sequence[np.ndarray]) -> Answer:
        """Answers about images.

        Args:
            accounts: `[num]` who asks; one may ask several times.
            images: `[num]` each `[height, width, 3]` uint8.

        Raises:
            ValueError: if an account has not so many queries left; nothing is answered then.
        """
        asked = self.asked + np.bincount(accounts, minlength=len(self.asked))
        if (asked > self.budget).any():
            account = int(np.argmax(asked > self.budget))
            raise ValueError(
                f"account {account} asks for {asked[account] - self.asked[account]} images and has "
                f"{self.left()[account]} of {self.budget} queries left"
            )
        self.asked = asked
        point = self._point
        rows, apart = self._index.search(self._run(images), self.k)
        within = np.ones(rows.shape, bool)
        if point.kind == "top_k":
            within[:, int(point.value) :] = False
        else:
            within = point.within(apart)
        wanted = (rows[:, :, None] == self._about[accounts][:, None]).any(axis=2)
        match = (wanted & within).any(axis=1)
        told = (rows, apart if self._kind == "distances" else None)
        return Answer(match, *(told if self._kind != "match" else (None, None)))
