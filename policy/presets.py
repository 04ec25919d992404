"""The built-in sets, written as an administrator would write them; docs/policy.md prints this text.

"default" is what a rule without `auth` or `crypto` gets: wide enough for other implementations, without
anything RFC 8247 advises against. Where Windows' default is Kerberos, here it is a certificate, then a
pre-shared key. The "compatible-" sets are what Windows of a generation can do, the strongest first, while its
own order begins with the weakest: "compatible-2012" is for 8, 2012 and later, "compatible-2008" for Vista to
2008 R2 and for the L2TP clients of all later versions, "compatible-xp" for XP and 2003, which have nothing
better than 3DES; only this one names it, and group 2. DES, MD5 and group 1 are refused. 64-bit blocks are
rekeyed early, after 100 MB as those systems do it.
A set in a file replaces a built-in one of the same name.
"""

PRESETS = """\
[auth.default]
first = ["certificate", "psk"]

[auth.machine-and-user]
first  = ["kerberos", "certificate"]
second = ["user-kerberos", "user-ntlm"]

[crypto.default]
main = [
    "x25519 aes256gcm sha384",
    "x25519 aes128gcm sha256",
    "x25519 chacha20poly1305 sha256",
    "x25519 aes256 sha256",
    "x25519 aes128 sha256",
    "p256 aes256gcm sha384",
    "p256 aes128gcm sha256",
    "p256 aes256 sha256",
    "p256 aes128 sha256",
    "p384 aes256gcm sha384",
    "p384 aes256 sha384",
    "modp3072 aes256 sha256",
    "modp2048 aes256gcm sha384",
    "modp2048 aes128gcm sha256",
    "modp2048 aes256 sha256",
    "modp2048 aes128 sha256",
]
quick = ["aes128gcm", "aes256gcm", "chacha20poly1305", "aes256 sha256", "aes128 sha256"]
lifetime = { main = "8 h", quick = "1 h", quick_bytes = "100 GB" }

[crypto.modern]
main  = ["x25519 aes256gcm sha384", "p256 aes128gcm sha256"]
quick = ["aes128gcm", "aes256gcm", "chacha20poly1305"]
pfs   = true

[crypto.compatible-2012]
main  = ["p384 aes256 sha384", "p256 aes256 sha256", "p256 aes128 sha256", "modp2048 aes256 sha256"]
quick = ["aes256gcm", "aes128gcm", "aes256 sha256", "aes128 sha256", "aes128gmac"]
esn   = false

[crypto.compatible-2008]
main = [
    "p384 aes256 sha384",
    "p256 aes128 sha256",
    "p384 aes256 sha1",
    "p256 aes128 sha1",
    "modp2048 aes256 sha1",
    "modp2048 aes128 sha1",
]
quick = ["aes256gcm", "aes128gcm", "aes256 sha1", "aes128 sha1", "null sha1"]
esn   = false

[crypto.compatible-xp]
main     = ["modp2048 3des sha1", "modp1024 3des sha1"]
quick    = ["3des sha1", "null sha1"]
esn      = false
lifetime = { quick_bytes = "100 MB" }
"""
