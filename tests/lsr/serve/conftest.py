import pytest

from tests.lsr.saved import FORMS, save


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A function that returns a folder of three adapters of a form, which nobody changes."""
    done = {}

    def of(form):
        if form not in done:
            model, fields = FORMS[form]
            done[form] = tmp_path_factory.mktemp("adapters")
            for seed, name in enumerate("abc"):
                save(done[form] / name, model, seed, **fields)
        return done[form]

    return of
