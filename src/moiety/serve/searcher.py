"""Searcher: searches for moves in a thread of their own, so that the one that takes in the ranks' answers goes on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from moiety.control.balancing import found, search_of, stands

if TYPE_CHECKING:
    from concurrent.futures import Future

    from moiety.control.balancing import Search
    from moiety.control.commands import MoveExperts
    from moiety.control.state import State


class Searcher:
    """Makes one search at a time. What is found was decided of the state as it was when the search began."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="search for moves")
        self._under_way: tuple[Search, Future[MoveExperts]] | None = None

    def moves_for(self, state: State) -> MoveExperts | None:
        """Return what a search has found, where it still stands; else None at once, and begin what is due.

        Nothing is begun while a search is under way. What has lost its ground meanwhile is dropped. Raises what the
        search has raised.
        """
        if self._under_way is not None:
            search, future = self._under_way
            if not future.done():
                return None
            self._under_way = None
            moves = future.result()
            if stands(search, state):
                return moves
        search = search_of(state)
        if search is not None:
            self._under_way = search, self._pool.submit(found, search)
        return None
