/*
 * stp/translate.h: a TCP program's source, unchanged, over shared storage.
 *
 * Compile with `-include stp/translate.h`, or include it before anything is called, and link with -lstp. The opening
 * and naming calls then go to libstp, which knows what means a system of the group by the rules of stp run(1):
 * SYSTEM.stp, its synthetic address, and what STP_RUN_MAP maps. The volume is named by STP_VOLUME, as everywhere; an
 * engine must run (stp engine). Without STP_VOLUME, and for every other address, family and kind of socket, the
 * calls are the kernel's.
 *
 * Only the names of external functions change, when they are linked: members of structures, macros, static
 * functions and variables of the same name stay what they are, and a function's address is the new function's.
 * A descriptor stays a kernel TCP socket, so read, write, send, recv, poll, close and the rest need nothing.
 */
#ifndef STP_TRANSLATE_H
#define STP_TRANSLATE_H

#if !defined(__GNUC__)
#error "stp/translate.h needs a compiler that knows #pragma redefine_extname: gcc or clang"
#endif

#pragma redefine_extname bind stp_translate_bind
#pragma redefine_extname listen stp_translate_listen
#pragma redefine_extname connect stp_translate_connect
#pragma redefine_extname accept stp_translate_accept
#pragma redefine_extname accept4 stp_translate_accept4
#pragma redefine_extname getsockname stp_translate_getsockname
#pragma redefine_extname getpeername stp_translate_getpeername
#pragma redefine_extname getsockopt stp_translate_getsockopt
#pragma redefine_extname sendto stp_translate_sendto
#pragma redefine_extname sendmsg stp_translate_sendmsg
#pragma redefine_extname getaddrinfo stp_translate_getaddrinfo
#pragma redefine_extname getnameinfo stp_translate_getnameinfo
#pragma redefine_extname gethostbyname stp_translate_gethostbyname
#pragma redefine_extname gethostbyname2 stp_translate_gethostbyname2
#pragma redefine_extname gethostbyaddr stp_translate_gethostbyaddr
#pragma redefine_extname gethostbyname_r stp_translate_gethostbyname_r
#pragma redefine_extname gethostbyname2_r stp_translate_gethostbyname2_r
#pragma redefine_extname gethostbyaddr_r stp_translate_gethostbyaddr_r

#endif
