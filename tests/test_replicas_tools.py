"""What the tests of replicas rest on: a relay and a real nginx that take turns, a Redis that dies and comes back."""

import threading
from collections.abc import Iterator
from socketserver import StreamRequestHandler, ThreadingTCPServer

import httpx
import pytest
import redis as client

from .client import Client, get
from .conftest import eventually
from .redis_server import Redis, Refused
from .replicas import Alternating, Balance, Nginx, Replicas, StartReplicas
from .resource import create, rest_of, said
from .turns import How, Turns
from .upstream import closed_port

pytest_plugins = ["tests.upstream", "tests.replicas"]

# --- whose turn it is -------------------------------------------------------------------------------------------------


class Named(ThreadingTCPServer):
    """A service that answers each request by its name, as many as there are on a connection."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.name = name.encode()
        self.port: int = self.server_address[1]
        self.ends: list[How] = []  # of the connections that their clients ended
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        super().__exit__(*exc)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of it: a connection may be reset at any moment."""


class _Answering(StreamRequestHandler):
    server: Named

    def handle(self) -> None:
        try:
            while self.rfile.readline():
                head = [*iter(self.rfile.readline, b"\r\n")]
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n")
                if b"Connection: close\r\n" in head:
                    self.wfile.write(b"Connection: close\r\n\r\n" + self.server.name)
                    return
                self.wfile.write(b"\r\n" + self.server.name)
            self.server.ends.append("FIN")
        except ConnectionResetError:
            self.server.ends.append("RST")


@pytest.fixture
def two() -> Iterator[list[Named]]:
    with Named("A") as a, Named("B") as b:
        yield [a, b]


def asked(port: int, number: int) -> str:
    """Return who answers to a client that keeps its connection."""
    with httpx.Client(trust_env=False) as http:
        return "".join(http.get(f"http://127.0.0.1:{port}/").text for _ in range(number))


@pytest.mark.parametrize(("balance", "answers"), [(Turns, "AAAA"), (Alternating, "ABAB"), (Nginx, "ABAB")])
def test_each_connection_or_request_goes_to_the_next(balance: Balance, answers: str, two: list[Named]) -> None:
    with balance([one.port for one in two]) as balancer:
        assert asked(balancer.port, 4) == answers
        for _ in range(2):
            with get(balancer.port) as one, get(balancer.port) as other:
                assert {one.read(), other.read()} == {b"A", b"B"}


@pytest.mark.parametrize("balance", [Turns, Alternating, Nginx])
def test_who_is_not_there_is_passed_over(balance: Balance, two: list[Named]) -> None:
    with closed_port() as closed, balance([closed.getsockname()[1], two[0].port]) as balancer:
        assert "".join(asked(balancer.port, 1) for _ in range(4)) == "AAAA"


def read(client: Client) -> str:
    return client.read().decode()


def test_it_is_said_whose_turn_it_is_and_kept_who_had_one(two: list[Named]) -> None:
    with Turns([one.port for one in two]) as turns:
        for replica in (1, 1, 0):
            turns.next(replica)
            with get(turns.port) as client:
                assert read(client) == "AB"[replica]
        with get(turns.port) as client:
            assert read(client) == "B"
        assert turns.taken == [1, 1, 0, 1]


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_how_a_client_goes_is_how_the_replica_sees_it_go(how: How, two: list[Named]) -> None:
    with Turns([one.port for one in two]) as turns:
        with get(turns.port) as client:
            read(client)
            client.hang_up(reset=how == "RST")
        assert eventually(lambda: two[0].ends) == [how]


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_what_is_cut_is_cut_on_both_sides(how: How, two: list[Named]) -> None:
    with Turns([one.port for one in two]) as turns, get(turns.port) as a, get(turns.port) as b, get(turns.port) as c:
        assert "".join(map(read, (a, b, c))) == "ABA"
        turns.cut(how, replica=0)
        for client in (a, c):
            if how == "FIN":
                assert client.socket.recv(1) == b""
            else:
                with pytest.raises(ConnectionResetError):
                    client.socket.recv(1)
        assert len(eventually(lambda: two[0].ends[1:])) == 1
        b.send(b"GET / HTTP/1.1\r\n\r\n")
        assert b.read_on(lambda body: body.endswith(b"B"))
        assert two[1].ends == []


# --- Redis ------------------------------------------------------------------------------------------------------------


def test_what_dies_with_a_redis_and_what_it_keeps() -> None:
    with Redis() as redis, Redis(keeps=True) as keeping:
        for one in (redis, keeping):
            assert one.ask("SET", "a", "b") == "OK"
            one.kill()
            with pytest.raises(ConnectionRefusedError):
                one.ask("PING")
            one.start()
        assert (redis.ask("GET", "a"), keeping.ask("GET", "a")) == (None, "b")


def test_a_redis_that_stands_still_has_done_what_it_was_asked_when_it_goes_on(redis: Redis) -> None:
    redis.pause()
    with pytest.raises(TimeoutError):
        redis.ask("INCR", "n", within=0.05)
    redis.go_on()
    assert eventually(lambda: redis.ask("GET", "n")) == "1"
    redis.pause()  # and can be stopped as it stands


def test_its_replies_are_read_as_they_are(redis: Redis) -> None:
    assert redis.ask("RPUSH", "list", "ä", b"\r\n", 3) == 3
    assert redis.ask("LRANGE", "list", 0, -1) == ["ä", "\r\n", "3"]
    assert redis.ask("MSET", "a", 1, "b", 2) == "OK"
    with pytest.raises(Refused, match="WRONGTYPE"):
        redis.ask("INCR", "list")
    assert redis.calls()["rpush"] == 1
    redis.ask("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(Refused, match="OOM"):
        redis.ask("SET", "a", "b")


@pytest.mark.parametrize("tls", [False, True])
def test_its_url_leads_to_it_by_name_and_password(tls: bool) -> None:
    with Redis(password="p:/ @w", tls=tls) as redis:
        for url in (redis.url, redis.socket_url):
            with client.Redis.from_url(url) as connection:
                assert connection.set("a", "b")
        assert redis.ask("GET", "a") == "b"
        wrong = client.Redis.from_url(redis.url.replace("w@", "x@"))
        with wrong, pytest.raises(client.AuthenticationError):
            wrong.ping()


# --- Replicas ---------------------------------------------------------------------------------------------------------


def requests(replicas: Replicas, line: str) -> list[int]:
    return [service.log.count(line) for service in replicas.services]


def test_a_run_is_made_by_one_and_followed_at_another(start_replicas: StartReplicas) -> None:
    replicas = start_replicas()
    for balance in (Alternating, Nginx):
        before = requests(replicas, "POST /runs ")
        with balance(replicas.ports) as balancer:
            created = create(balancer.port, message="Hi", model="scripted/echo")
            assert said(rest_of(get(balancer.port, created["events_url"])))["token"] == "Hi"
        made = [after - number for after, number in zip(requests(replicas, "POST /runs "), before, strict=True)]
        assert sorted(made) == [0, 1]
        assert requests(replicas, f"GET /runs/{created['id']}/events") == made[::-1]
