"""The thread that owns a context: requests come in from any thread, and their answers leave token by token."""

import threading
from collections import deque

from pyvllama.batching import Batcher, Request
from pyvllama.context import Context
from pyvllama.errors import BackendError, Cancelled

__all__ = ["Engine"]

_PROMPT_ROWS_BESIDE = 32
"""Rows of prompts in a step while answers are generated. On a CPU a matrix product is bound by arithmetic from about
there on (11B shapes, Q4_K_M, 2 threads: 48 ms for one row, 10.5 a row for 32, 10.0 for 256): a longer piece would stop
the others for longer without making the prompt faster."""


class Engine:
    """Runs requests on a context that nobody else uses. Thread-safe. `close` is idempotent.

    A request's callbacks are called on the engine's thread and must be quick; what they raise ends that request alone.

    Args:
        context: with as many sequences as there shall be answers at a time; closed with the engine.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._batcher = Batcher(context, _PROMPT_ROWS_BESIDE)
        self._waiting: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._news = threading.Condition()
        self._n_active = 0
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="pyvllama-engine", daemon=True)
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        """Whether it takes no requests any more."""
        return self._is_closing

    @property
    def n_slots(self) -> int:
        """Answers that are generated at a time."""
        return self._context.n_seq_max

    @property
    def n_active(self) -> int:
        """Requests that have a slot."""
        return self._n_active

    @property
    def n_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def n_steps(self) -> tuple[int, int]:
        """(batches decoded, requests in them, summed up), since the start."""
        return self._batcher.n_steps, self._batcher.n_busy

    def submit(self, request: Request) -> None:
        """Queue a request; returns at once.

        Raises:
            BackendError: the engine is closed; the request's sampler is still the caller's.
        """
        with self._news:
            if self._is_closing:
                raise BackendError("the model is closed")
            self._waiting.append(request)
            self._news.notify()

    def cancel(self, request: Request) -> None:
        """End a request with Cancelled, if it has not ended; its slot is free after the step that is being computed."""
        with self._news:
            self._cancelled.append(request)
            if self._n_active == 1 and request not in self._waiting:
                self._context.interrupt(True)  # nobody else's step
            self._news.notify()

    def close(self) -> None:
        """End all requests with Cancelled, then the thread, then close the context."""
        with self._news:
            self._is_closing = True
            self._context.interrupt(True)
            self._news.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()
            self._context.close()

    # --- on the engine's thread ---

    def _work(self) -> None:
        while self._prepare():
            self._step()
        while self._waiting:
            self._waiting.popleft().end(Cancelled("the model was closed"))
        self._batcher.fail(Cancelled("the model was closed"))
        self._batcher.close()

    def _step(self) -> None:
        try:
            self._batcher.step()
        except Cancelled:  # an interrupt: whoever it was for goes at the next step, the others try again
            return
        except Exception as e:  # whoever waits must learn of it
            self._batcher.fail(BackendError.of(e))

    def _prepare(self) -> bool:
        """Wait for work, let requests go and come; False at the end."""
        with self._news:
            self._n_active = self._batcher.n_active
            while not (self._is_closing or self._waiting or self._n_active):
                self._cancelled.clear()
                self._news.wait()
            if self._is_closing:
                return False
            self._context.interrupt(False)
            leaving = [*self._cancelled]
            self._cancelled.clear()
            dropped = [r for r in leaving if r in self._waiting]
            for request in dropped:
                self._waiting.remove(request)
        for request in leaving:
            self._batcher.cancel(request)
        for request in dropped:
            request.end(Cancelled("the request was cancelled"))
        while self._batcher.n_free and self._waiting:
            with self._news:
                request = self._waiting.popleft()
            try:
                self._batcher.start(request)
            except Exception as e:
                request.end(BackendError.of(e))
        self._n_active = self._batcher.n_active
        return True
