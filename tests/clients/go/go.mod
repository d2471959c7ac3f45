module idleguard/tests/clients

go 1.24
