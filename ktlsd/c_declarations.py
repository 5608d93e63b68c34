"""The C functions that ktlsd calls, as cffi reads them. Nothing imports this at run time.

Strategy: setup.py has cffi compile these declarations to ktlsd/_openssl.py when the package is built, so that no
compiler and no C parser is needed afterwards (out-of-line ABI mode). ssl_ffi.py calls the functions of OpenSSL,
system_calls.py those of the C library.
"""

from __future__ import annotations

from typing import Any, Final

OPENSSL: Final = """
typedef int64_t off_t;
typedef ... SSL_METHOD;
typedef ... SSL_CTX;
typedef ... SSL;
typedef ... SSL_SESSION;
typedef ... SSL_CIPHER;
typedef ... BIO;
typedef ... X509;
typedef ... EVP_PKEY;
typedef ... X509_NAME;
typedef ... X509_NAMES;
typedef ... X509_STORE;
typedef ... X509_LOOKUP;
typedef ... X509_LOOKUP_METHOD;
typedef ... X509_VERIFY_PARAM;
typedef ... X509_CHAIN;
typedef ... ASN1_TIME;

unsigned long OpenSSL_version_num(void);
const char *OpenSSL_version(int type);

void ERR_clear_error(void);
unsigned long ERR_get_error(void);
const char *ERR_reason_error_string(unsigned long e);

const SSL_METHOD *TLS_server_method(void);
const SSL_METHOD *TLS_client_method(void);
SSL_CTX *SSL_CTX_new(const SSL_METHOD *method);
void SSL_CTX_free(SSL_CTX *ctx);
long SSL_CTX_ctrl(SSL_CTX *ctx, int cmd, long larg, void *parg);
uint64_t SSL_CTX_set_options(SSL_CTX *ctx, uint64_t options);
int SSL_CTX_set_cipher_list(SSL_CTX *ctx, const char *str);
int SSL_CTX_set_ciphersuites(SSL_CTX *ctx, const char *str);
int SSL_CTX_set_session_id_context(SSL_CTX *ctx, const unsigned char *sid_ctx, unsigned int sid_ctx_len);
void SSL_CTX_set_alpn_select_cb(SSL_CTX *ctx, void *callback, void *arg);
void SSL_get0_alpn_selected(const SSL *ssl, const unsigned char **data, unsigned int *len);
int SSL_CTX_set_num_tickets(SSL_CTX *ctx, size_t num_tickets);
int SSL_set_num_tickets(SSL *s, size_t num_tickets);
size_t SSL_get_num_tickets(const SSL *s);
long SSL_CTX_set_timeout(SSL_CTX *ctx, long t);
void SSL_CTX_set_default_passwd_cb_userdata(SSL_CTX *ctx, void *u);
int SSL_CTX_use_certificate_chain_file(SSL_CTX *ctx, const char *file);
int SSL_CTX_use_PrivateKey_file(SSL_CTX *ctx, const char *file, int type);
X509 *SSL_CTX_get0_certificate(const SSL_CTX *ctx);
EVP_PKEY *SSL_CTX_get0_privatekey(const SSL_CTX *ctx);
int SSL_CTX_use_cert_and_key(SSL_CTX *ctx, X509 *x509, EVP_PKEY *privatekey, X509_CHAIN *chain, int override);
int SSL_CTX_up_ref(SSL_CTX *ctx);
int SSL_CTX_compress_certs(SSL_CTX *ctx, int alg);
size_t SSL_CTX_get1_compressed_cert(SSL_CTX *ctx, int alg, unsigned char **data, size_t *orig_len);
void CRYPTO_free(void *ptr, const char *file, int line);
EVP_PKEY *X509_get0_pubkey(const X509 *x);
const char *EVP_PKEY_get0_type_name(const EVP_PKEY *key);
int EVP_PKEY_get_bits(const EVP_PKEY *pkey);
int EVP_PKEY_get_group_name(const EVP_PKEY *pkey, char *gname, size_t gname_sz, size_t *gname_len);
int X509_check_host(X509 *x, const char *name, size_t namelen, unsigned int flags, char **peername);
int X509_check_ip_asc(X509 *x, const char *address, unsigned int flags);
const ASN1_TIME *X509_get0_notBefore(const X509 *x);
const ASN1_TIME *X509_get0_notAfter(const X509 *x);
struct tm {
    int tm_sec;
    int tm_min;
    int tm_hour;
    int tm_mday;
    int tm_mon;
    int tm_year;
    int tm_wday;
    int tm_yday;
    int tm_isdst;
    long tm_gmtoff;
    const char *tm_zone;
};
int ASN1_TIME_to_tm(const ASN1_TIME *s, struct tm *tm);

void SSL_CTX_set_verify(SSL_CTX *ctx, int mode, void *callback);
void SSL_CTX_set_verify_depth(SSL_CTX *ctx, int depth);
int SSL_CTX_load_verify_file(SSL_CTX *ctx, const char *file);
X509_NAMES *SSL_load_client_CA_file(const char *file);
void SSL_CTX_set_client_CA_list(SSL_CTX *ctx, X509_NAMES *list);
X509_STORE *SSL_CTX_get_cert_store(const SSL_CTX *ctx);
X509_LOOKUP *X509_STORE_add_lookup(X509_STORE *store, X509_LOOKUP_METHOD *meth);
X509_LOOKUP_METHOD *X509_LOOKUP_file(void);
int X509_load_crl_file(X509_LOOKUP *ctx, const char *file, int type);
int X509_STORE_set_flags(X509_STORE *xs, unsigned long flags);
X509_VERIFY_PARAM *SSL_CTX_get0_param(SSL_CTX *ctx);
int X509_VERIFY_PARAM_add1_host(X509_VERIFY_PARAM *param, const char *name, size_t namelen);
void SSL_set_verify(SSL *ssl, int mode, void *callback);
long SSL_get_verify_result(const SSL *ssl);
const char *X509_verify_cert_error_string(long n);
X509 *SSL_get0_peer_certificate(const SSL *s);
X509_NAME *X509_get_subject_name(const X509 *a);
char *X509_NAME_oneline(const X509_NAME *a, char *buf, int size);

SSL *SSL_new(SSL_CTX *ctx);
long SSL_ctrl(SSL *ssl, int cmd, long larg, void *parg);
void SSL_free(SSL *ssl);
int SSL_set_fd(SSL *ssl, int fd);
void SSL_set_accept_state(SSL *ssl);
void SSL_set_connect_state(SSL *ssl);
int SSL_do_handshake(SSL *ssl);
int SSL_read(SSL *ssl, void *buf, int num);
int SSL_has_pending(const SSL *s);
const char *SSL_rstate_string(const SSL *s);
int SSL_write(SSL *ssl, const void *buf, int num);
ssize_t SSL_sendfile(SSL *s, int fd, off_t offset, size_t size, int flags);
int SSL_shutdown(SSL *ssl);
int SSL_get_error(const SSL *ssl, int ret);
int SSL_get_key_update_type(const SSL *s);
const char *SSL_get_version(const SSL *ssl);
const char *SSL_get_servername(const SSL *ssl, int type);
const SSL_CIPHER *SSL_get_current_cipher(const SSL *ssl);
const SSL_CIPHER *SSL_get_pending_cipher(const SSL *s);
int SSL_CIPHER_is_aead(const SSL_CIPHER *c);
const char *SSL_CIPHER_get_name(const SSL_CIPHER *cipher);
const char *SSL_get_cipher_list(const SSL *ssl, int n);
int SSL_session_reused(const SSL *ssl);
SSL_SESSION *SSL_get_session(const SSL *ssl);
uint8_t SSL_SESSION_get_max_fragment_length(const SSL_SESSION *sess);

BIO *SSL_get_rbio(const SSL *ssl);
BIO *BIO_new_socket(int sock, int close_flag);
int BIO_free(BIO *a);
long BIO_ctrl(BIO *bp, int cmd, long larg, void *parg);
int BIO_test_flags(const BIO *b, int flags);
"""

SYSTEM_CALLS: Final = """
struct open_how {
    uint64_t flags;
    uint64_t mode;
    uint64_t resolve;
};
long syscall(long number, long dirfd, const char *path, struct open_how *how, size_t size);
int fstatfs(int fd, void *buf);
int statx(int directory, const char *path, int flags, unsigned int mask, void *buf);
void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset);
int munmap(void *address, size_t size);
int mincore(void *address, size_t size, unsigned char *pages);
int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
"""


def ffibuilder() -> Any:
    """The cffi build description."""
    from cffi import FFI

    builder = FFI()
    builder.set_source("ktlsd._openssl", None)
    builder.cdef(OPENSSL)
    builder.cdef(SYSTEM_CALLS)
    return builder
