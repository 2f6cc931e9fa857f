"""The sessions of nodes at the coordinator: greeting, welcome, the end of a stream; the witness."""

from coordinator.rounds import events as e
from coordinator.rpc import greeting
from privacy.heads import Head
from protos.errors import Unavailable
from protos.feddp.v1 import federation_pb2 as pb
from tests.simulation.coordinator_driver import Done, Driver, Session
from tests.simulation.network import TO_COORDINATOR, TO_NODE, Reply, Stream

DISCONNECTED_S = 10.0


class Greeter(Driver):
    """Takes what nodes say first into the store by the product's own `greet`."""

    began_at_s = 0.0

    def greet(self, stream: Stream, hello: pb.Hello) -> pb.Welcome | Unavailable:
        """One transaction, which may fail, or commit unheard."""
        node, fails = stream.node.name, self.strike("database_fails")
        greeting.check_hello(hello)
        try:
            with self.store.transaction() as connection:
                self.store.enrol(node, self.world.public_keys[node])
                welcome, _ = greeting.greet(connection, node, hello, self.clock())  # type: ignore[arg-type]
                if fails:
                    raise Unavailable("DATABASE", "the disk is full")
        except Unavailable as error:
            return error
        self.world.checker.limits.heard(node, hello, stream.raises)
        self.world.checker.central_changed()
        if self.strike("commit_unheard"):
            return Unavailable("DATABASE", "nobody heard whether it was committed")
        return welcome

    def welcome(self, stream: Stream, answer: pb.Welcome | Unavailable) -> None:
        """The session is open: the node gets its open orders, and may be selected."""
        if not stream.open[TO_COORDINATOR]:
            return
        if isinstance(answer, Unavailable):
            stream.end(TO_COORDINATOR)
            return
        node = stream.node.name
        old = self.sessions.pop(node, None)
        if old is not None:
            old.stream.end(TO_COORDINATOR)
        self.sessions[node] = Session(stream, self.world.now_s)
        stream.send(TO_NODE, pb.CoordinatorMessage(welcome=answer))
        for live in self.running():
            self.take(live, e.NodeReturned(node), ends(stream))

    def stream_ended(self, stream: Stream) -> None:
        """The stream is gone."""
        session = self.sessions.get(stream.node.name)
        if self.up and session is not None and session.stream is stream:
            del self.sessions[stream.node.name]
            self.left_at_s[stream.node.name] = self.world.now_s

    def lost(self, node: str) -> bool:
        """Whether nobody waits for the node any more."""
        if node in self.sessions:
            return not self.connected(node)
        left_at_s = self.left_at_s.get(node, self.began_at_s)
        return self.world.now_s - left_at_s >= DISCONNECTED_S

    # The witness

    def read_heads(self, node: str, reply: Reply) -> None:
        """Where the chains of a node's accounts stand."""
        own = [one for one in self.store.accounts() if one.node == node]
        reply([Head(one.account, one.entries, one.head_hash) for one in own])

    def read_entries(self, account: str, after_seq: int, reply: Reply) -> None:
        """An account's entries after one."""
        reply(self.store.chain(account, after_seq))


def ends(stream: Stream) -> Done:
    """A message that cannot be taken ends the stream; the node says it again on the next."""

    def done(fault: Exception | None) -> None:
        if fault is not None:
            stream.end(TO_COORDINATOR)

    return done
