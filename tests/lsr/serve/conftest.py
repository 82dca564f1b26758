import pytest

from tests.lsr.serve.tenants import save_bank


@pytest.fixture(scope="session")
def there(tmp_path_factory):
    """The folder of `save_bank`: a base model, adapters of tenants and their bank, which nobody changes."""
    folder = tmp_path_factory.mktemp("server")
    save_bank(folder)
    return folder
