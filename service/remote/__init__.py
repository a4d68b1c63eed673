"""The parts of the Python client (`service.client`): calls, answers, errors and retries."""
