//! Who the client is, and which headers the application gets.
