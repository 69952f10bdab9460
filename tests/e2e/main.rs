//! Writ from outside, over a real nats-server.
