// boost.context: a fiber's switch keeps what a function call keeps, and of the floating-point state MXCSR and FCW.
#include "peer.h"

#include <boost/context/fiber.hpp>
#include <utility>

static boost::context::fiber other;

static void switches(unsigned long count)
{
    for (unsigned long i = 0; i < count / 2; i++)
        other = std::move(other).resume();
}

int main()
{
    other = boost::context::fiber([](boost::context::fiber &&caller) {
        for (;;)
            caller = std::move(caller).resume();
        return std::move(caller);
    });
    serve(switches, 400000);
    _Exit(0); // the fiber's endless loop is not unwound
}
