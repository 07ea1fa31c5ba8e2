"""What a run and its dry run check before anything is opened."""

from __future__ import annotations

from pathlib import Path

from deepcait.training.own import with_digests
from deepcait.training.places import asking_for_places
from deepcait.training.prolong import require_prolongable
from deepcait.training.recipe import Recipe
from deepcait.training.run_folder import require_startable
from deepcait.training.sound import require_sound
from deepcait.training.start import has_start


def require_ready(recipe: Recipe, folder: Path, resume: bool) -> Recipe:
    """Return the recipe with the digests of the user's parts if it can be run in this folder; writes nothing.

    Args:
        recipe: with `data.source` filled.
        folder: of the run.
        resume: continue the run that is there.

    Raises:
        DeepcaitError: the folder holds something else, the run can't be prolonged, settings do not fit each other or
            this machine, or the source of a part has changed.
    """
    require_startable(folder, resume)
    require_prolongable(folder, recipe)
    known = folder if resume else None
    with asking_for_places(known, recipe, "teacher"):
        require_sound(recipe, has_start=resume and has_start(folder))
    return with_digests(recipe, known)
