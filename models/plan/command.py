"""Makes the plan that a command line asks for, prints it and writes its configuration."""

import argparse
import sys
from typing import Any

from pydantic import ValidationError

from models.config import TableConfig, config_sentence
from models.errors import ConfigError
from models.plan.options import TABLE_OPTIONS
from models.plan.plan import Plan, make_plan


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan, once it is printed and written. Raises ConfigError, DataError."""
    names = [name.replace("-", "_") for name in TABLE_OPTIONS]
    given: dict[str, Any] = {name: getattr(args, name) for name in names}
    if args.test_share is not None:
        given["test_share"] = args.test_share
    try:
        table = TableConfig(**given)
    except ValidationError as exc:
        raise ConfigError(config_sentence(exc)) from exc
    plan = make_plan(args.data, table, args.set)
    path = plan.write(args.var)
    sys.stdout.write(f"{plan.text()}\n\n{path} holds this as a configuration.\n\n")
    sys.stdout.flush()
    return plan
