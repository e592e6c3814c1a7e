"""For every room: tests keep engine choices in build/, never in the home of who runs them."""

import os
from pathlib import Path

# In the environment, so that the stations that tests start as processes use it too. One folder for
# all tests: measuring which engine is fastest takes seconds, and it need not be done for each.
os.environ.setdefault("STATION_CACHE", str(Path(__file__).parent.parent / "build" / "test-cache"))
