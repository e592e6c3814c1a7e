"""pytest plugin (-p tests.station.mutant_plugin): load a mutated file in place of a module."""

import importlib.util
import os
import sys

if "MUTANT" in os.environ:
    name, path = os.environ["MUTANT"].split("=", 1)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    setattr(sys.modules.get(name.rpartition(".")[0]) or sys, name.rpartition(".")[2], module)
