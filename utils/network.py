"""Why an address cannot be reached, in words: a missing package, a proxy, an address that is none."""

import os
from urllib.parse import urlparse

SOCKS = "pip install 'requests[socks]' 'httpx[socks]'"  # one library each, of downloads and of the hub


def trouble(error: BaseException, url: str) -> str:
    """What went wrong when an address was asked, and which setting of this machine has a part in it.

    error : of requests, httpx or the system. url : str. What was asked.
    """
    variable, proxy = proxy_of(url)
    if not url.startswith(("https://", "http://")):
        return f"{url!r} is no address; expected https://{url}"
    if proxy.startswith("socks") and isinstance(error, ImportError | ValueError):  # requests' InvalidSchema is one
        return f"a SOCKS proxy is set in {variable} and a package for it is not installed: {SOCKS}"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "its certificate is not trusted; SSL_CERT_FILE and REQUESTS_CA_BUNDLE name the file of a proxy's own"
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = f"{type(error).__name__} {status}" if status else type(error).__name__
    return f"{said} through the proxy {proxy} that {variable} sets" if proxy and not status else said


def proxy_of(url: str) -> tuple[str, str]:
    """The variable that sets a proxy for an address, and that proxy without name and password; "" without one."""
    import requests  # slow to import

    proxies = requests.utils.get_environ_proxies(url)
    if not (proxy := requests.utils.select_proxy(url, proxies)):
        return "", ""
    names = [name for name, value in os.environ.items() if name.lower().endswith("_proxy") and value == proxy]
    at = urlparse(proxy if "://" in proxy else f"http://{proxy}")
    return (names or ["this machine"])[0], f"{at.scheme}://{at.netloc.rpartition('@')[2]}"
