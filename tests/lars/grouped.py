"""What a list of parameter groups says, and that it is complete."""

DECAYED, SPARED = {"weight_decay": 0.125, "adapt": True}, {"weight_decay": 0.0, "adapt": False}


def settings_by_name(groups):
    """Return the settings of each name, and assert that no parameter comes twice."""
    found, seen = {}, set()
    for group in groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        for name, param in group["params"]:
            assert name not in found
            assert id(param) not in seen
            seen.add(id(param))
            found[name] = settings
    return found


def assert_complete(module, groups):
    """Assert that what is trained is in the groups under the module's own names, and nothing else."""
    trained = {name: param for name, param in module.named_parameters() if param.requires_grad}
    listed = {name: param for group in groups for name, param in group["params"]}
    assert listed.keys() == trained.keys()
    assert all(listed[name] is trained[name] for name in trained)
    settings_by_name(groups)
