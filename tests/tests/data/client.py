"""Uses the lab through the stock Python client: typed calls, a watch, and the dynamic client on a custom kind."""

import threading

from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException

config.load_kube_config()
core = client.CoreV1Api()
storage = client.StorageV1Api()

assert int(client.VersionApi().get_code().minor.rstrip("+")) >= 20
assert {ns.metadata.name for ns in core.list_namespace().items} >= {"default", "kube-system"}

# Typed calls.
body = client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="py-"), data={"a": "1"})
made = core.create_namespaced_config_map("default", body)
name = made.metadata.name
assert name.startswith("py-") and len(name) == 8, name
core.patch_namespaced_config_map(name, "default", {"data": {"b": "2"}})
made = core.read_namespaced_config_map(name, "default")
assert made.data == {"a": "1", "b": "2"}, made.data
made.data = {"c": "3"}
core.replace_namespaced_config_map(name, "default", made)
try:
    core.replace_namespaced_config_map(name, "default", made)
    raise AssertionError("a stale write was accepted")
except ApiException as error:
    assert error.status == 409, error
try:
    core.read_namespaced_config_map("missing", "default")
    raise AssertionError("a missing object was found")
except ApiException as error:
    assert error.status == 404, error

# A watch from a list's resource version sees each change once, in order.
listed = core.list_namespaced_config_map("default")
expected = [("ADDED", "w1"), ("MODIFIED", "w1"), ("DELETED", "w1")]
seen = []


def follow():
    for event in watch.Watch().stream(
        core.list_namespaced_config_map,
        "default",
        resource_version=listed.metadata.resource_version,
        timeout_seconds=20,
    ):
        seen.append((event["type"], event["object"].metadata.name))
        if len(seen) == len(expected):
            return


follower = threading.Thread(target=follow)
follower.start()
core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=client.V1ObjectMeta(name="w1"), data={}))
core.patch_namespaced_config_map("w1", "default", {"data": {"x": "y"}})
core.delete_namespaced_config_map("w1", "default")
follower.join(30)
assert seen == expected, seen

# Storage kinds, with their defaults.
made = storage.create_storage_class(
    client.V1StorageClass(metadata=client.V1ObjectMeta(name="py"), provisioner="example.com/py")
)
assert made.reclaim_policy == "Delete" and made.volume_binding_mode == "Immediate"
try:
    storage.patch_storage_class("py", {"provisioner": "example.com/other"})
    raise AssertionError("the provisioner could be changed")
except ApiException as error:
    assert error.status == 422, error
storage.delete_storage_class("py")

# Pages.
for number in range(7):
    core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=client.V1ObjectMeta(name=f"page-{number}", labels={"page": "y"})))
names, token = [], None
while True:
    page = core.list_namespaced_config_map("default", label_selector="page=y", limit=3, _continue=token)
    names += [item.metadata.name for item in page.items]
    token = page.metadata._continue
    if not token:
        break
assert names == [f"page-{number}" for number in range(7)], names
core.delete_collection_namespaced_config_map("default", label_selector="page=y")
assert not core.list_namespaced_config_map("default", label_selector="page=y").items

# The dynamic client, on a kind that is made here.
client.ApiextensionsV1Api().create_custom_resource_definition(
    {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}},
                        }
                    },
                }
            ],
        },
    }
)
gadgets = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="example.com/v1", kind="Gadget")
made = gadgets.create(
    namespace="default",
    body={"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {"n": 1, "dropped": 2}},
)
assert made.spec.n == 1 and "dropped" not in made.spec.to_dict(), made
gadgets.server_side_apply(
    namespace="default",
    body={"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {"n": 5}},
    field_manager="py",
    force_conflicts=True,
)
assert gadgets.get(name="g", namespace="default").spec.n == 5
gadgets.delete(name="g", namespace="default")
print("all good")
