module idleguard/tests/mesh/kit

go 1.26
