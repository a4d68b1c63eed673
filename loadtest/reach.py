"""Says in words why no connection to the service can be made, before anything is measured."""

import http.client
import socket
import ssl

from loadtest.errors import Unreachable
from loadtest.target import Target

CONNECT_S = 5.0
"""How long a connection may take. A choice: far longer than across the world."""


def check_reachable(target: Target, timeout_s: float = CONNECT_S) -> None:
    """Make one connection and send one GET /livez; any answer in HTTP will do.

    Raises Unreachable where no connection can be made, and where one of the two sides speaks TLS
    and the other does not. A service that is slow to answer is reachable.
    """
    make = http.client.HTTPSConnection if target.tls else http.client.HTTPConnection
    connection = make(target.host, target.port, timeout=timeout_s)
    try:
        connection.connect()
    except (OSError, UnicodeError) as exc:
        raise Unreachable(_why(target, exc, timeout_s)) from exc
    try:
        connection.request("GET", f"{target.prefix}/livez", headers={"Host": target.host_header})
        status = connection.getresponse().status
    except TimeoutError:
        return
    except (OSError, http.client.HTTPException):
        status = None
    finally:
        connection.close()
    # A server of TLS hangs up on a request without it, answers with an alert, or with a 400.
    plain = not target.tls
    if plain and status in (None, http.client.BAD_REQUEST) and _speaks_tls(target, timeout_s):
        place = _place(target)
        raise Unreachable(f"{place} speaks TLS and --url does not: write https:// for http://.")
    if status is None:
        raise Unreachable(
            f"{_place(target)} takes connections but does not answer in HTTP: correct --url."
        )


def _why(target: Target, exc: OSError | UnicodeError, timeout_s: float) -> str:
    place = _place(target)
    match exc:
        case socket.gaierror() | UnicodeError():
            return f"The name {target.host} is not known here: correct --url."
        case ssl.SSLCertVerificationError():
            return (
                f"The certificate of {place} is not trusted ({exc.verify_message}): name the "
                "certificate of its authority in the variable SSL_CERT_FILE, or correct --url."
            )
        case ConnectionRefusedError():
            return f"Nothing listens on {place}: start the service, or correct --url."
        case ssl.SSLError() | ConnectionResetError() if target.tls:
            return f"{place} does not speak TLS: write http:// for https://."
        case TimeoutError():
            what = "TLS handshake" if target.tls else "connection"
            return f"{place} completes no {what} within {timeout_s:g} s: correct --url."
    return f"No connection to {place} can be made ({exc}): correct --url."


def _speaks_tls(target: Target, timeout_s: float) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    try:
        with socket.create_connection((target.host, target.port), timeout_s) as plain:
            context.wrap_socket(plain).close()
    except OSError:
        return False
    return True


def _place(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"{host}:{target.port}"
