//! The calls that `stp/translate.h` puts in place of a TCP program's own.
//!
//! - Each has the signature of the call it stands for, with `stp_translate_` before its name.
//! - What means no system, and every call where no volume is named, is the C library's.

use libc::{
    addrinfo, c_char, c_int, c_void, hostent, msghdr, size_t, sockaddr, socklen_t, ssize_t,
};
use stp_posix::inet::{LIBC, of_environment};

macro_rules! translated {
    ($($abi:literal fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        $(
            /// The call behind its prefix.
            // SAFETY: no other library has a function of this name.
            #[unsafe(export_name = concat!("stp_translate_", stringify!($name)))]
            pub(crate) unsafe extern $abi fn $name($($argument: $type),*) -> $result {
                // SAFETY: the program's own arguments.
                unsafe {
                    match of_environment() {
                        Some(inet) => inet.$name(&LIBC, $($argument),*),
                        None => (LIBC.$name)($($argument),*),
                    }
                }
            }
        )*
    };
}

stp_posix::translated_calls!(translated);
