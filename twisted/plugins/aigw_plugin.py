from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

aigw = ServiceMaker("AI Gateway", "aigw.tap", "An OpenAI-compatible gateway with fallback between providers.", "aigw")
reactor = Reactor("aigw", "aigw.net.reactor", "epoll(7), as the AI Gateway uses it.")
