"""The built-in sets, written as an administrator would write them; docs/policy.md prints this text.

"default" is what a rule without `auth` or `crypto` gets: wide enough for other implementations, without
anything RFC 8247 advises against. Where policy.md section 4.4 prefers Kerberos with a keytab, the default
here is a certificate, then a pre-shared key. "compatible-2008" stands for the defaults of that generation as
far as they may still be used: its DH group 2, 3DES and MD5 are refused, so group 14 and AES stand in.
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

[crypto.compatible-2008]
main  = ["modp2048 aes128 sha1", "p256 aes128 sha1", "p256 aes128 sha256", "p384 aes256 sha384"]
quick = ["aes128 sha1", "aes256 sha1", "null sha1"]
esn   = false
"""
