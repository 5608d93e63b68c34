"""What all tests share."""

# The name under which pytest knows this directory depends on whether it is a package.
pytest_plugins = [f"{__package__}.vm.plugin" if __package__ else "vm.plugin"]
