//! The guest agent, its protocol and client.
