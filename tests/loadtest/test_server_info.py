"""Reading /v1/info, and not minding when it cannot be read."""

from loadtest.server_info import read_server_info
from loadtest.target import Target
from tests.support.fake_service import fake_service, refused_url


def test_the_answer_is_returned():
    with fake_service() as service:
        info = read_server_info(Target.parse(service.url))
    assert info == {"bundle_id": "abc", "device": "cpu"}


def test_no_service_gives_no_info():
    assert read_server_info(Target.parse(refused_url())) is None
