"""What all tests share."""

from hypothesis import settings

settings.register_profile("long", max_examples=3000, stateful_step_count=80)

# The name under which pytest knows this directory depends on whether it is a package.
pytest_plugins = [f"{__package__}.vm.plugin" if __package__ else "vm.plugin"]
