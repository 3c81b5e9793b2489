/* Compiled with general registers only: the state is loaded when the copy is wiped. */
#include "checked_load.h"

int load_checked(const Py_buffer *image, checked_use *use, void *data)
{
    struct private_copy copy;
    struct illegal what;
    struct refusal refusal = {0};
    guard_acquire();
    int error = private_copy_take(&copy, image->buf, (size_t)image->len, &refusal);
    if (!error && image_illegal(copy.image, (size_t)image->len, &what))
        error = ILLEGAL;
    if (!error) {
        refusal = use(&copy, data);
        error = refusal.signal ? REFUSED : 0;
    }
    guard_release();
    if (error == ILLEGAL)
        raise_illegal(&what);
    else if (error == REFUSED)
        raise_refusal(&refusal, copy.image, copy.size);
    private_copy_wipe(&copy);
    return error;
}
