drwxr-xr-x     0     0            0 2026-11-21 06:04:08 d
-rw-r--r--     0     0            9 2026-11-21 06:04:08 d/caf\xe9
prw-r--r--     0     0            0 2026-11-21 06:04:08 d/fifo
-rw-r--r--     0     0            6 2001-09-09 01:46:40 d/file
----r-----     0     0            1 2096-10-02 07:06:40 d/future
hrw-r--r--     0     0            0 2001-09-09 01:46:40 d/hard link to d/file
drwxr-xr-x     0     0            0 2026-11-21 05:58:28 d/nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn
crw-r--r--     0     0          1,3 2026-11-21 06:04:08 d/null
lrwxrwxrwx     0     0            0 1960-01-01 00:00:00 d/soft -> ../x
-rw-r--r--     0     0      1048576 2026-11-21 05:58:28 d/sparse
-rwxr-xr-x 3000000 4000000000        28890 2026-11-21 06:04:08 d/text
-rw-r--r--     0     0            0 2026-11-21 05:58:28 d/nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn/mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm
