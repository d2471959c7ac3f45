//! Follows the messages on one connection: is an exchange in flight?
