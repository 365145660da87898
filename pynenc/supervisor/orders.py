"""What the rules tell a worker that lives: by its slot, or over its connection."""

from __future__ import annotations

from typing import TypeAlias, assert_never

from pynenc.protocol.frames import frame
from pynenc.protocol.messages import Kind, number_frame
from pynenc.supervisor.events import CutWorker, PauseWorker, ResumeCall, ResumeWorker, StopCall, UncutWorker
from pynenc.supervisor.pool import Worker

Order: TypeAlias = CutWorker | UncutWorker | PauseWorker | ResumeWorker | ResumeCall | StopCall


def tell(worker: Worker, order: Order) -> None:
    """Tell a worker."""
    match order:
        case CutWorker():
            worker.slot.cut(order.start, order.stop)
        case UncutWorker():
            worker.slot.uncut()
        case PauseWorker():
            if order.cut is None:
                worker.slot.uncut()
            else:
                worker.slot.cut(*order.cut)
            worker.peer.send(frame(Kind.PAUSED))
        case ResumeWorker():
            if order.uncut:
                worker.slot.uncut()
            worker.peer.send(frame(Kind.RESUMED))
        case ResumeCall():
            worker.peer.send(number_frame(Kind.RESUMED, order.position))
        case StopCall():
            worker.peer.send(number_frame(Kind.CANCEL, order.position))
        case _:
            assert_never(order)
