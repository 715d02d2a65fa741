"""cluster.yaml is what `ray up` accepts, and keeps the promises that its comments make."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_it_fits_rays_schema(config):
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(config))


def test_dashboard_on_loopback_tokens_on_spot_workers_and_a_head_that_trains_nothing(config):
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in " ".join(commands)
    kinds = config["available_node_types"]
    assert kinds[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]
    assert kinds["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert kinds["gpu_spot"]["resources"]["GPU"] == 1


def test_what_a_job_uploads_leaves_out_data_and_results():
    ignored = (ROOT / ".rayignore").read_text().split()
    assert {".git/", ".venv/", "/results/", "/mlruns/", "*.safetensors", "mlflow.db"} <= set(ignored)
