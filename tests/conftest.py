"""What all tests share."""

import pytest

# The name under which pytest knows this directory depends on whether it is a package.
pytest_plugins = [f"{__package__}.vm.plugin" if __package__ else "vm.plugin"]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make the profile "long" before hypothesis looks for it; an emulated machine is spared the import otherwise."""
    if config.getoption("--hypothesis-profile", None) == "long":
        from hypothesis import settings

        settings.register_profile("long", max_examples=3000, stateful_step_count=80)
