"""What becomes of the calls in the hands of a worker that died."""

from __future__ import annotations

from pynenc.protocol.messages import DEFAULT_DELAY
from pynenc.status import InvocationStatus
from pynenc.supervisor.events import Effect, EndCalls, Ended, FailLost, WorkerLost
from pynenc.supervisor.orchestrator.leases import ConcurrentLeases, Leased, WorkerLeases
from pynenc.supervisor.orchestrator.leasing import Leasing
from pynenc.supervisor.orchestrator.outcomes import transition


def _ran_too_long_on_top(worker: WorkerLeases, waiting: Leased) -> bool:
    """Whether a worker was ended because of a call that ran on top of this one, which waited."""
    return worker.doomed is not None and worker.doomed[1] is Ended.TIMED_OUT and waiting.position < worker.doomed[0]


class Losses(Leasing):
    """The rules about workers that died."""

    def worker_lost(self, loss: WorkerLost) -> list[Effect]:
        """Blame the call that ran, and put the rest of the leases back.

        The dead worker's slot names that call, so no other call pays for it. When the slot still names an earlier
        call, the worker died before it began the next one, and nobody is to blame.
        """
        if loss.worker in self.concurrent:
            return self.concurrent_worker_lost(loss, self.concurrent.pop(loss.worker))
        worker = self.workers.pop(loss.worker, None)
        if worker is None:
            return []
        effects: list[Effect] = []
        paused = {waiting.position: began for (waiting, _), began in zip(worker.paused, worker.began, strict=True)}
        for leased in worker.take_all():
            if leased.position in paused:
                at = loss._replace(position=leased.position)
                if worker.doomed is not None and worker.doomed[0] == leased.position:
                    effects += self._doomed_call(at, leased, worker.doomed[1], paused[leased.position])
                else:
                    # It had begun; and if the calls it makes kill workers, or take too long in each, it must not run for ever.
                    late = _ran_too_long_on_top(worker, leased)
                    blamed = at if late or (worker.doomed is None and not loss.innocent) else at._replace(position=0)
                    effects += self._lost_call(blamed, leased, leased.position, late_on_top=late)
                continue
            begun = min(max(loss.position + 1, leased.position), leased.end)
            if begun < leased.end:
                effects += self._put_back(leased.since(begun).calls)
            if (
                worker.doomed is not None
                and worker.doomed[0] == loss.position
                and begun - 1 == loss.position >= leased.position
            ):
                effects += self._doomed_call(loss, leased, worker.doomed[1])
                begun -= 1
            # What was ended because of a call that it ran on top of did nothing wrong.
            blamed = loss if worker.doomed is None and not loss.innocent else loss._replace(position=0)
            for position in range(begun - 1, leased.position - 1, -1):
                effects += self._lost_call(blamed, leased, position)
        for key in self.keys.let_all_go(loss.worker):
            effects += self._wake(key)
        return effects

    def _doomed_call(self, loss: WorkerLost, leased: Leased, why: Ended, began: float = 0.0) -> list[Effect]:
        """End the call because of which its worker was ended, or try it again."""
        if why is Ended.SHELVED:
            return self._lost_call(loss._replace(position=0), leased, loss.position)
        calls = leased.since(loss.position).before(loss.position + 1).calls
        task = self.tasks[calls.task]
        options = task.options
        may_retry = {Ended.TIMED_OUT: options.retry_on_timeout, Ended.MEMORY: options.retry_on_memory}
        if may_retry.get(why, False) and calls.attempt < options.max_retries:
            attempt = EndCalls(
                calls.batch, calls.task, calls.first, calls.stop, calls.attempt, why, loss.worker, True, began
            )
            delay_s = task.delay_s(calls.attempt, DEFAULT_DELAY, 0.5)
            return [attempt, *self._try_again(calls.batch, calls.first, delay_s)]
        return self._end(calls, why, loss.worker, began=began)

    def concurrent_worker_lost(self, loss: WorkerLost, worker: ConcurrentLeases) -> list[Effect]:
        """Run all calls again that had begun.

        Which of them is to blame nobody knows. So the one that was there too often runs alone from then on, and
        it has failed when its worker dies once more.
        """
        effects: list[Effect] = []
        in_company = len(worker.held) > 1
        lost = worker.take_all()
        # Those that wait come first: they leave the line for their keys, so that no key is given to them any more.
        for leased in sorted(lost, key=lambda one: one.position not in worker.waiting):
            effects += self._let_go(loss.worker, leased.calls)
        for leased in lost:
            at = loss._replace(position=leased.position)
            if worker.doomed is not None and worker.doomed[0] == leased.position:
                effects += self._doomed_call(at, leased, worker.doomed[1])
            elif leased.position > loss.position:
                effects += self._put_back(leased.calls)
            else:
                # If its worker was ended because of another call, it did nothing wrong.
                blamed = at if worker.doomed is None and not loss.innocent else at._replace(position=0)
                effects += self._lost_call(blamed, leased, leased.position, in_company, worker.is_dying)
        return effects

    def _lost_call(
        self,
        loss: WorkerLost,
        leased: Leased,
        position: int,
        in_company: bool = False,
        over_memory: bool = False,
        late_on_top: bool = False,
    ) -> list[Effect]:
        """Run a call again that had begun when its worker died, or fail it."""
        calls = leased.since(position).before(position + 1).calls
        batch, index = self.batches[calls.batch], calls.first
        task = self.tasks[batch.task]
        ran = position == loss.position
        if ran:
            batch.losses[index] = batch.losses.get(index, 0) + 1
        losses = batch.losses.get(index, 0)
        too_often = losses > task.options.max_worker_losses
        if task.options.rerun_on_worker_loss and (not too_often or (in_company and index not in batch.isolated)):
            if too_often:
                batch.isolated.add(index)
            return [transition(calls, InvocationStatus.REROUTED, loss.worker, ran), *self._put_back(calls)]
        if over_memory:
            return self._end(calls, Ended.MEMORY, loss.worker)
        return [
            FailLost(
                loss.worker,
                calls.task,
                calls.batch,
                index,
                calls.attempt,
                losses,
                ran,
                task.options.rerun_on_worker_loss,
                late_on_top,
            ),
            *self._failed(calls.batch, index, index + 1),
        ]
