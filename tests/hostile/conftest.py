from contextlib import ExitStack

import pytest

from lsr.serve.bank import AdapterBank
from tests.hostile.serving import Server
from tests.kit import edit
from tests.lsr.serve.started import started
from tests.lsr.serve.tenants import save_writers
from tests.lsr.serve.test_fitting import save_tenants

TEMPLATE = "{% for message in messages %}{{ message['role'] }}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function that starts a server of a bank and returns it."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("LSR_TOKEN", "secret")
        patch.setenv("OMP_NUM_THREADS", "1")

        def start_server(bank, folder):
            log = tmp_path_factory.mktemp("log") / "log"
            limits = ("--max-length", "40", "--max-new-tokens", "20")
            running = stack.enter_context(started(bank, log, *limits, is_new=True))
            return Server(running.process.pid, running.port, folder)

        yield start_server


@pytest.fixture(scope="session")
def writers(tmp_path_factory):
    """A folder with a bank that writes after prompts; of adapter `t` the prompts are conversations."""
    folder = tmp_path_factory.mktemp("writers")
    bank = save_writers(folder, "a")
    edit(folder / "base/tokenizer_config.json", model_max_length=64)
    bank.add("t", folder / "a", task_info={"template": TEMPLATE})
    bank.save(folder / "bank")
    return folder


@pytest.fixture(scope="session")
def grouped(tmp_path_factory):
    """A folder with a bank of tenants that share an adapter, in which `acme` and `corp` have the same labels."""
    folder, *_ = save_tenants(tmp_path_factory.mktemp("grouped"), "bert")
    bank = AdapterBank.of_tenants(folder / "adapter", str(folder / "base"))
    bank.save(folder / "bank")
    return folder
