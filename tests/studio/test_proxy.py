"""Behind a proxy: with a prefix that it takes off or leaves, with TLS that ends there, and in JupyterLab."""

import asyncio

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx

from compressor.errors import WrongUseError
from compressor.studio.access import Access, Role
from compressor.studio.app import studio_app
from compressor.studio.serving import Address, tell_links

PORT = 8765


class Proxied:
    """A browser at `address`'s public origin, whose proxy sends `host`, and takes the prefix off where it `strips`."""

    def __init__(self, desk, access, address, *, host, strips):
        self.address, self.access, self.strips = address, access, strips
        app = studio_app(
            desk,
            access,
            hosts=address.hosts(PORT),
            scheme=address.scheme,
            origin=address.origin,
            prefix=address.prefix,
            cookie=address.cookie(PORT),
        )
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), headers={"host": host})

    def __call__(self, method, path, **more):
        where = "" if self.strips else self.address.prefix
        return asyncio.run(self.client.request(method, f"{self.address.origin}{where}{path}", **more))

    def works(self):
        """In by the printed link, a page, a part, and out again; gives the cookie's words."""
        link = self.address.link(PORT, self.access.token(Role.EDITOR))
        assert link.startswith(f"{self.address.origin}{self.address.prefix}/enter?token=")
        entered = self("GET", link.removeprefix(self.address.origin + self.address.prefix))
        assert entered.status_code == 303
        assert entered.headers["location"] == "./"
        # The path that a browser would send it for is the one outside; here it is given by hand.
        jar = {"cookie": entered.headers["set-cookie"].partition(";")[0]}
        page = self("GET", "/", headers=jar)
        assert page.status_code == 200
        for each in ('href="', 'src="'):
            links = [part.partition('"')[0] for part in page.text.split(each)[1:]]
            assert links
            assert not any(link.startswith(("/", "http")) for link in links)
        assert self("GET", "/part/runs", headers=jar).status_code == 200
        word = {**jar, "x-csrf-token": page.text.partition('data-csrf="')[2].partition('"')[0]}
        assert self("POST", "/leave", headers={**word, "origin": "https://evil.example"}).status_code == 403
        assert self("POST", "/leave", headers={**word, "origin": self.address.origin}).status_code == 204
        return entered.headers["set-cookie"].lower()


@pytest.mark.parametrize("strips", [True, False])
@pytest.mark.parametrize("host", ["lab.example.org", f"127.0.0.1:{PORT}"])
def test_a_proxy_with_tls_and_a_prefix(desk, host, strips):
    """Browsers say https and the proxy's name, the proxy says this server's or hands the name on: both are served."""
    address = Address(port=PORT, origin="https://lab.example.org", prefix="/tools/studio")
    cookie = Proxied(desk, Access(), address, host=host, strips=strips).works()
    assert "; secure" in cookie
    assert "path=/tools/studio/" in cookie
    assert "samesite=strict" in cookie
    assert "httponly" in cookie


def test_the_proxy_of_jupyterlab(desk):
    """At /proxy/8765/ of a server without TLS, which takes the prefix off and hands its own Host on."""
    address = Address(port=PORT, origin="http://localhost:8888", prefix=f"/proxy/{PORT}")
    cookie = Proxied(desk, Access(), address, host="localhost:8888", strips=True).works()
    assert f"path=/proxy/{PORT}/" in cookie
    assert "secure" not in cookie


def test_a_prefix_is_taken_off_once(desk):
    """What looks like it in the middle of a path, or goes on without a slash, is no address."""
    address = Address(port=PORT, origin="https://lab.example.org", prefix="/studio")
    proxied = Proxied(desk, Access(), address, host="lab.example.org", strips=True)
    assert proxied("GET", "/studio/static/icon.svg").status_code == 200
    for path in ("/studio/studio/static/icon.svg", "/studiostatic/icon.svg", "/x/studio/static/icon.svg", "/studio"):
        assert proxied("GET", path).status_code == 404


@pytest.mark.parametrize(
    "wrong",
    [
        {"origin": "lab.example.org"},
        {"origin": "https://lab.example.org/studio"},
        {"origin": "HTTPS://Lab"},
        {"origin": "ftp://lab"},
        {"origin": "https://a\r\nb"},
        {"prefix": "studio"},
        {"prefix": "/studio/"},
        {"prefix": "/"},
        {"prefix": "/a//b"},
        {"prefix": "/a;b"},
        {"prefix": "/a?b"},
    ],
)
def test_what_is_no_origin_or_prefix_is_refused(wrong):
    """Before the server starts, with what would be one."""
    with pytest.raises(WrongUseError, match=r"--public-origin|--prefix"):
        Address(**wrong)


def test_two_studios_of_one_machine_do_not_share_a_cookie():
    """Browsers send a cookie to every port of a machine: each studio has one of its own name."""
    one, other = Address(port=8765), Address(port=8766)
    assert one.cookie(8765) != other.cookie(8766)


def test_everybody_gets_a_link():
    """By name where people are named, and one to watch."""
    told = []
    access = Access(("ada", "ben"))
    tell_links(access, Address(), PORT, told.append)
    assert [line.split(" http")[0].rstrip() for line in told] == ["to edit, ada:", "to edit, ben:", "to watch:"]
    assert len({line.rpartition("=")[2] for line in told}) == 3
    session = access.enter(access.token(Role.EDITOR, "ben"))
    assert (session.role, session.person) == (Role.EDITOR, "ben")
