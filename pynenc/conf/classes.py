"""All configuration classes: what the reference lists, and where a name is looked up."""

from __future__ import annotations

from pynenc.conf.sources import Config


def config_classes() -> list[type[Config]]:
    """Every configuration class, imported when somebody asks."""
    from pynenc.conf.config_blobs import ConfigBlobs
    from pynenc.conf.config_broker import ConfigBroker
    from pynenc.conf.config_orchestrator import ConfigOrchestrator
    from pynenc.conf.config_pynenc import ConfigPynenc
    from pynenc.conf.config_runner import ConfigRunner
    from pynenc.conf.config_state_backend import ConfigStateBackend
    from pynenc.conf.config_task import ConfigTask

    return [
        ConfigPynenc,
        ConfigTask,
        ConfigRunner,
        ConfigBroker,
        ConfigOrchestrator,
        ConfigStateBackend,
        ConfigBlobs,
    ]
