"""The state folder of ACME, made for the user who serves, before anything is bound.

Strategy: root makes the folder and gives it away; all that is in it is made as that user.
"""

from __future__ import annotations

import os

from ktlsd.acme.folder import of_settings, prepare
from ktlsd.acme.settings import machine_complaints
from ktlsd.config.refusal import SettingsError, cause
from ktlsd.process.privileges import Identity, acting_as
from ktlsd.settings import Loaded


def make(loaded: Loaded, identity: Identity | None) -> None:
    """Make it, and what is missing in it. Raises SettingsError, PrivilegeError."""
    settings = loaded.settings
    for place, complaint in machine_complaints(settings):
        raise SettingsError(f"{loaded.where(place)}{complaint}")
    folder = of_settings(settings)
    try:
        if identity is not None and os.geteuid() == 0 and not folder.path.parent.exists():
            folder.path.parent.mkdir(mode=0o700, parents=True)
            os.chown(folder.path.parent, *identity)
        with acting_as(identity):
            prepare(settings, folder)
    except OSError as error:
        remedy = "let ktlsd's user write there, or set STATE_DIRECTORY or XDG_STATE_HOME"
        raise SettingsError(f"certificates by ACME need a state folder: {cause(error)}: {remedy}") from error
