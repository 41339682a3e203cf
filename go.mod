module bs3

go 1.26
