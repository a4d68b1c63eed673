"""`python -m service.settings` prints docs/configuration.md."""

import sys

from service.settings.settings import documentation

sys.stdout.write(documentation())
